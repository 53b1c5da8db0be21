"""Endless tiny stories in Chinese, like `stories`: a second language for a model that has learned English."""

import random

from minillama.corpus.grammar import Grammar

RULES = {
    "story": ["{lost}", "{cake}", "{night}", "{boat}", "{seed}"],
    "lost": [
        "一个{weather}的早晨，{hero}找不到{colour}的{toy}了。{she}在{place}只找到了{number}{treasure}。"
        "这时来了一{friend}，{it}说：“去{other_place}看看吧。”{toy}果然在那里！{hero}{ended}。"],
    "cake": [
        "今天{hero}想给{relative}做一个{colour}的蛋糕。{she}有{number}个{fruit}，可是没有{butter}。"
        "这时来了一{friend}，{it}说：“用我的吧。”他们在{place}忙到{late}。这是最好吃的蛋糕。"],
    "night": [
        "夜里{wind}来了，{hero}很害怕。{she}抱着{colour}的{toy}躲在{place}。这时来了一{friend}，"
        "{it}说：“我也害怕。”他们数了{number}{treasure}，慢慢睡着了。"],
    "boat": [
        "每到{season}，{hero}都在{place}数船，一共有{number}条。有一天，一条{colour}的船不见了。"
        "这时来了一{friend}，{it}说：“我会游泳。”{late}，船回来了，上面装满了{fruit}。"],
    "seed": [
        "{month}里，{hero}在{place}种下一粒{colour}的种子。{she}等了{number}天，什么也没有长出来。"
        "这时来了一{friend}，{it}说：“给它唱首歌吧。”{she}唱到{late}。现在这里有一棵树，"
        "结满了{fruit}。"],

    "hero | she": ["莉莉 | 她", "小梅 | 她", "阿珠 | 她", "汤姆 | 他", "大明 | 他", "李雷 | 他"],
    "friend | it": ["只猫头鹰 | 它", "只狐狸 | 它", "只母鸡 | 它",
                    "头山羊 | 它", "头小熊 | 它", "个老人 | 他", "个邻居 | 他"],
    "weather": ["下雨", "刮风", "下雪", "有雾"],
    "colour": ["红色", "蓝色", "绿色", "黄色", "银色", "金色", "紫色", "白色"],
    "toy": ["风筝", "小鼓", "皮球", "铃铛", "帽子", "木船", "灯笼", "画册"],
    "number": [str(number) for number in range(11, 100)],
    "treasure": ["枚贝壳", "块石头", "根羽毛", "颗橡子", "粒纽扣", "颗星星", "只绵羊", "只飞蛾"],
    "fruit": ["梨子", "李子", "苹果", "柠檬", "无花果", "坚果", "草莓", "樱桃"],
    "butter": ["黄油", "面粉", "白糖", "牛奶"],
    "place": ["井边", "磨坊后面", "谷仓里", "池塘边", "桥下", "山坡上", "大门口", "教堂旁边"],
    "other_place": ["床底下", "炉子后面", "架子上", "烟囱里"],
    "relative": ["妈妈", "爸爸", "姐姐", "叔叔"],
    "wind": ["大风", "雷声", "暴雨", "风雪"],
    "season": ["春天", "夏天", "秋天", "冬天"],
    "month": ["三月", "四月", "五月", "六月"],
    "late": ["半夜", "晚饭时", "天亮", "星星出来"],
    "ended": ["跳着舞回家了", "一路跑回家了", "笑到吃晚饭", "再也没有弄丢过"],
}

GRAMMAR = Grammar(RULES, start="{story}")
entropy_bits = GRAMMAR.entropy_bits  # of a story on average


def documents(seed, n):
    """`n` stories as `Document(text, bits)`; the same seed gives the same stories on every machine."""
    return GRAMMAR.documents(random.Random(f"chinese stories {seed}"), n)
