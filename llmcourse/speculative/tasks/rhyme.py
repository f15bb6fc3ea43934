"""How a Chinese character sounds today, from a standard that sorted its characters by sound: rhyme and tone.

The 3,755 common characters of GB 2312 (1980, level 1) stand in the order of their Pinyin, tone within
syllable, so the first character of each of 1,098 runs is a table of them all; Python knows the order as a
codec. Characters outside those are not judged. A character has one sound here, where some have several, and
it is today's: the poets of Tang heard entering tones (入声) that Mandarin has scattered over all four.

Rhymes are the thirteen groups of northern song (十三辙); level tones (平) are the first and second, the
others oblique (仄).
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right

# A syllable, then the first character of each of its four tones, - where GB 2312 has none.
RUNS = """
a啊--- ai埃皑蔼艾 an鞍-俺按 ang肮昂-盎 ao凹敖袄傲 ba芭拔靶耙 bai-白柏败 ban斑-板扮 bang邦-榜棒 bao苞薄保抱
bei杯-北辈 ben奔-苯笨 beng崩甭-泵 bi逼鼻比碧 bian鞭-贬便 biao标-表- bie鳖别瘪- bin彬--摈 bing兵-柄病
bo玻博-- bu--捕埠 ca擦--- cai猜裁睬菜 can餐蚕惨灿 cang苍藏-- cao操槽草- ce---厕 ceng-层-蹭 cha插茬-岔
chai拆柴-- chan搀蝉铲颤 chang昌场厂畅 chao超朝吵- che车-扯撤 chen郴臣-趁 cheng撑城逞秤 chi吃持耻赤
chong充虫宠- chou抽酬瞅臭 chu初橱楚矗 chuai揣--- chuan川椽喘串 chuang疮幢闯创 chui吹捶-- chun春醇蠢-
chuo戳--绰 ci疵茨此刺 cong聪从-- cou---凑 cu粗--醋 cuan蹿--篡 cui摧--脆 cun村存-寸 cuo磋--措 da搭达打大
dai呆-歹戴 dan耽-掸旦 dang当-挡荡 dao刀-捣到 de-德-- deng蹬-等瞪 di堤迪抵地 dian颠-碘靛 diao碉--掉 die跌碟--
ding丁-顶锭 diu丢--- dong东-董动 dou兜-抖豆 du都毒堵杜 duan端-短锻 dui堆--兑 dun墩--顿 duo掇夺垛跺 e-蛾-恶
en恩--- er-而耳二 fa发罚法珐 fan藩樊反范 fang坊肪仿放 fei菲肥匪吠 fen芬坟粉奋 feng丰逢讽奉 fo-佛-- fou--否-
fu夫扶甫赴 ga-噶-- gai该-改概 gan干-赶赣 gang冈-岗杠 gao篙-搞告 ge哥革-铬 gei--给- gen根--- geng耕-埂-
gong工-巩贡 gou钩-苟垢 gu辜-鼓故 gua刮-剐挂 guai乖-拐怪 guan棺-管罐 guang光-广逛 gui瑰-轨桂 gun--辊棍
guo锅国果过 ha哈--- hai-骸海氦 han酣邯喊翰 hang夯杭-- hao-壕郝耗 he呵荷-赫 hei嘿--- hen-痕很恨 heng哼横--
hong轰虹-- hou-喉吼厚 hu呼瑚虎护 hua花华-画 huai-槐-坏 huan欢环缓换 huang荒黄晃- hui灰蛔毁慧 hun荤魂-混
huo豁活伙获 ji击吉挤蓟 jia嘉荚贾稼 jian歼-茧荐 jiang僵-蒋匠 jiao蕉嚼搅教 jie揭截解戒 jin巾-紧进 jing荆-井静
jiong--炯- jiu揪-玖厩 ju鞠菊咀聚 juan捐--倦 jue撅攫-- jun均--峻 ka喀-卡- kai开-楷- kan刊-坎看 kang康扛-抗
kao--考靠 ke坷壳可克 ken--肯- keng坑--- kong空-恐控 kou抠-口扣 ku枯-苦酷 kua夸-垮挎 kuai---块 kuan宽-款-
kuang匡狂-矿 kui亏葵傀馈 kun坤-捆困 kuo---括 la垃-喇蜡 lai-莱-赖 lan-蓝揽烂 lang-琅朗浪 lao捞劳老酪 le---勒
lei-雷蕾擂 leng-棱冷- li-厘理莉 lia--俩- lian-联敛链 liang-粮两辆 liao撩聊了撂 lie---列 lin-琳凛赁
ling拎玲岭另 liu溜琉柳六 long-龙垄- lou-楼搂漏 lu-芦掳麓 lü-驴吕虑 luan-峦卵乱 lue---掠 lun抡轮-论
luo-萝裸落 ma妈麻玛骂 mai-埋买麦 man-瞒满蔓 mang-芒莽- mao猫茅铆茂 mei-玫镁昧 men-门-闷 meng-萌锰梦
mi眯醚米秘 mian-棉冕面 miao-苗藐庙 mie---蔑 min-民抿- ming-明-命 miu---谬 mo摸摹抹末 mou-谋某- mu--拇墓
na-拿哪呐 nai--氖耐 nan-南-- nang-囊-- nao-挠脑闹 nei--馁内 nen---嫩 neng-能-- ni妮霓拟匿 nian蔫年碾念
niang-娘-酿 niao--鸟尿 nie捏--聂 nin-您-- ning-柠-泞 niu-牛扭- nong-脓-弄 nu-奴努怒 nü--女- nuan--暖-
nue---虐 nuo-挪-懦 o-哦-- ou欧-藕沤 pa啪爬-帕 pai拍排-湃 pan攀盘-盼 pang乓庞耪胖 pao抛咆跑泡 pei呸培-配
pen喷盆-- peng砰彭捧碰 pi坯琵匹僻 pian篇--片 piao飘瓢-票 pie撇--- pin拼频品聘 ping乒坪-- po坡婆-破 pou剖---
pu扑莆埔曝 qi期其起契 qia掐--恰 qian牵乾遣堑 qiang枪墙抢- qiao橇桥巧鞘 qie切茄且怯 qin钦秦寝沁 qing青擎顷庆
qiong-琼-- qiu秋球-- qu趋渠取趣 quan圈颧犬券 que缺瘸-却 qun-裙-- ran-然冉- rang-瓤壤让 rao-饶扰绕 re--惹热
ren-壬忍韧 reng扔仍-- ri---日 rong-戎冗- rou-揉-肉 ru-茹辱入 ruan--软- rui--蕊瑞 run---闰 ruo---若 sa撒-洒萨
sai腮--赛 san三-伞散 sang桑-嗓丧 sao搔-扫- se---瑟 sen森--- seng僧--- sha莎-傻啥 shai筛--晒 shan珊-闪擅
shang墒-赏上 shao梢芍少哨 she奢蛇舍赦 shen砷神沈甚 sheng声绳省盛 shi师十史式 shou收-手寿 shu蔬赎薯术
shua刷-耍- shuai摔-甩帅 shuan栓--- shuang霜-爽- shui-谁水睡 shun--吮瞬 shuo说--硕 si斯-死肆 song松-耸颂
sou搜-擞嗽 su苏俗-素 suan酸--蒜 sui虽隋髓碎 sun孙-损- suo蓑-琐- ta塌-塔挞 tai胎苔-泰 tan坍坛坦碳
tang汤塘倘趟 tao掏萄讨套 te---特 teng-藤-- ti梯提体替 tian天填舔- tiao挑条-眺 tie贴-铁- ting厅廷挺-
tong通桐桶痛 tou偷投-透 tu凸图土兔 tuan湍团-- tui推颓腿蜕 tun吞屯-- tuo拖鸵椭拓 wa挖娃瓦袜 wai歪--外
wan豌玩碗万 wang汪王枉旺 wei威韦苇未 wen瘟蚊吻问 weng嗡--瓮 wo挝-我斡 wu巫无武坞 xi昔檄喜系 xia瞎匣-下
xian掀咸显现 xiang相翔想项 xiao萧淆晓孝 xie楔鞋写械 xin薪--信 xing星刑醒幸 xiong兄雄-- xiu休-朽嗅 xu墟徐许蓄
xuan轩悬选眩 xue靴学雪血 xun勋循-殉 ya压芽雅亚 yan焉盐奄艳 yang殃杨氧样 yao邀瑶咬药 ye椰耶野页 yi一颐椅艺
yin茵吟饮印 ying英莹影硬 yo哟--- yong拥-踊用 you幽尤酉右 yu迂于雨玉 yuan鸳元远苑 yue曰--越 yun-耘陨运
za匝砸-- zai栽-宰载 zan-咱攒暂 zang赃--脏 zao遭凿藻躁 ze-责-- zei-贼-- zen--怎- zeng增--赠 zha扎札眨栅
zhai摘宅窄债 zhan瞻-盏蘸 zhang樟-掌杖 zhao招-找赵 zhe遮折者蔗 zhen珍-枕震 zheng蒸-整正 zhi芝职址志
zhong中-种重 zhou舟轴肘咒 zhu珠逐煮著 zhua抓-爪- zhuai拽--- zhuan专-转撰 zhuang桩--撞 zhui椎--赘 zhun谆-准-
zhuo捉琢-- zi兹-紫自 zong鬃-总纵 zou邹-走奏 zu租足祖- zuan钻-纂- zui--嘴醉 zun尊--- zuo-昨左柞
"""

# By the end of the syllable, the first that fits.
GROUPS = (
    ("江阳", "ang"),
    ("中东", "eng|ing|ong"),
    ("言前", "an"),
    ("人辰", "en|in|un|ün"),
    ("怀来", "ai"),
    ("灰堆", "ei|ui"),
    ("遥条", "ao"),
    ("油求", "ou|iu"),
    ("乜斜", "ie|ye|ue"),
    ("一七", "er|i|ü|[jqxy]u"),
    ("姑苏", "u"),
    ("发花", "a"),
    ("梭波", "o|e"),
)


def rhyme_group(character: str) -> str | None:
    """Which of the thirteen groups a character rhymes in; None if it is not of the 3,755."""
    sound = pronounce(character)
    if sound is None:
        return None
    return next(name for name, ends in GROUPS if re.search(f"({ends})$", sound[0]))


def is_level(character: str) -> bool | None:
    """Whether its tone is level (平) rather than oblique (仄); None if it is not of the 3,755."""
    sound = pronounce(character)
    return None if sound is None else sound[1] <= 2


def rhymes(first: str, second: str) -> bool:
    """Two different characters of one group."""
    group = rhyme_group(first)
    return group is not None and group == rhyme_group(second) and first != second


def pronounce(character: str) -> tuple[str, int] | None:
    """Its syllable in Pinyin and its tone, 1 to 4; None if it is not of the 3,755."""
    code = _code(character)
    if code is None:
        return None
    codes, sounds = _runs()
    return sounds[bisect_right(codes, code) - 1]


def _code(character: str) -> bytes | None:
    """Its place in GB 2312 if it is of level 1, whose rows are 16 to 55."""
    try:
        code = character.encode("gb2312")
    except UnicodeEncodeError:
        return None
    return code if len(code) == 2 and 0xB0 <= code[0] <= 0xD7 else None


@functools.cache
def _runs() -> tuple[list[bytes], list[tuple[str, int]]]:
    """Where each run begins, in order, and how it sounds."""
    runs = []
    for entry in RUNS.split():
        syllable, firsts = entry[:-4], entry[-4:]
        found = ((first, tone) for tone, first in enumerate(firsts, 1) if first != "-")
        runs += [(first.encode("gb2312"), (syllable, tone)) for first, tone in found]
    return [code for code, _ in runs], [sound for _, sound in runs]
